"""What came out of an ascent?"""
