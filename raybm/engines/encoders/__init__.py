"""What encoders answer, whichever engine computes their outputs: batches, pooling, labels, spans. Shared by transformers and onnx."""
