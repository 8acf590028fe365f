"""The embedded engine: transformers decoders in this process, on CPU or one GPU."""
