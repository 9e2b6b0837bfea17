"""How good is an OIP, and what does real data draw from each map?"""
