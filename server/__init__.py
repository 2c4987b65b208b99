"""The inference server: HTTP in front of a cascade on ONNX Runtime. It never imports torch."""
