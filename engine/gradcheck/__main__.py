"""python -m engine.gradcheck"""

from engine.gradcheck.command import main

if __name__ == "__main__":
    main()
