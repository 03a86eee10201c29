"""Labels for images of any size from one trained network, or several together:  python -m engine.predict RUN IMAGES
--out DIR
"""
