"""`python -m engine.gradcheck`: every gradient against finite differences, as a table, as JSON, as a page; bugs to
plant.

command.py   the command line        checks.py   what it runs           fast.py   fast kernels against the reference
settings.py  `--stride 2`            bugs.py     `--break NAME`         page.py, pictures.py   the HTML page
"""
