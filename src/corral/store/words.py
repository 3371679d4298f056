"""What people are told about where models come from, and of which formats they may be."""

SOURCES = "a known name, pypi:PACKAGE[==VERSION], a .gguf file, or a folder with config.json and safetensors"
MODELS = f"the name of a stored model, or {SOURCES}; fetched if it is missing"
FILE, FOLDER = "./model.gguf", "./model"  # examples of the two
