"""How is a strong OIP found for every map?"""
