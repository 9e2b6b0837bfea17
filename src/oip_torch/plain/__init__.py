"""How does a network leave as plain PyTorch, to be read, changed and trained?"""
