"""How the wheel is made from the checkout (hook.py), and the package `areograd` of an installation (package.py,
editable.py)."""
