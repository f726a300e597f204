"""tokengym"""
