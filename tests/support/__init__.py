"""What several tests share: tables of operators, checks, drawn inputs, small data and runs.

No test module imports another; what two of them need stands here.
"""
