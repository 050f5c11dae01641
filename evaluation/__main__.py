"""`python -m sightline.evaluation`: the same as `sightline evaluate`, for launchers of modules."""

from sightline.evaluation.command import app

if __name__ == "__main__":
    app()
