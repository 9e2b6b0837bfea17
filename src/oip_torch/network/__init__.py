"""Which torch module is the network, what do its layers say, and how is it run up to one of them?"""
