"""Weight files: recognising their model and format, reading them tensor by tensor, LoRAs, and writing safetensors."""
