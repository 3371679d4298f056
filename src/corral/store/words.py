"""What people are told about where models come from, and of which formats they may be."""

A_FOLDER = "a folder with config.json and safetensors"
SOURCES = f"a known name, pypi:PACKAGE[==VERSION], a .gguf file, or {A_FOLDER}"
MODELS = f"the name of a stored model, or {SOURCES}; fetched if it is missing"
FILE, FOLDER = "./model.gguf", "./model"  # examples of the two
