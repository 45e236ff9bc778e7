"""Files and offline batches in the storage, and the worker that runs them. The HTTP of both is serving/files.py and batches.py.

```
<storage>/serving/<application>/
  files/<tenant>/<file id>/parts/00000000, ..., file.json        the record is written last: without it there is no file
  batches/<tenant>/<batch id>/batch.json                         what GET /v1/batches/ID shows; changed by compare-and-swap
                              lease.json                         who works on it
                              parts/00000000, ...                lines that are done, each part whole or not at all
  active/<batch id>.<tenant>                                     batches that are not at their end
```
"""
