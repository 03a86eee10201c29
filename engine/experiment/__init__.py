"""Experiments: grids of training runs, their statistics, tables and figures.  python -m engine.experiment GRID"""
