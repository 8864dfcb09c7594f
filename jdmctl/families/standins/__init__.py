"""Stand-ins: tiny random models in the exact folder format of each family's real ones, made in a second.

What a recipe builds can be tried on them before anything is downloaded, and the tests hold each family to its own
diffusers pipeline with them.
"""
