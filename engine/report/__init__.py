"""The report of runs: a page without a network, and a run's summary and pictures.  python -m engine.report RUN..."""
