"""python -m engine.report"""

from engine.report.command import main

if __name__ == "__main__":
    main()
