"""The page of tasks: python -m periscope.evaluation.tasks > docs/tasks.md"""

from periscope.evaluation.tasks.page import page

if __name__ == "__main__":
    print(page(), end="")
