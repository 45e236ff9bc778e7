"""The ground floor: specs, errors, storage, artifacts, registry, events. Knows nothing of models or Ray."""
