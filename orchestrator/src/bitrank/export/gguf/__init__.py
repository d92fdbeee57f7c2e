"""Target GGUF: the file format of llama.cpp, LM Studio and Ollama."""
