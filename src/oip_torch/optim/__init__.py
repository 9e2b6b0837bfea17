"""How does an image ascend: objectives, starts, settings, the loop?"""
