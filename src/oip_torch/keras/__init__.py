"""How does a Keras file become a verified ONNX file?"""
