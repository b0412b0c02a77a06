"""The page of tasks: python -m scoring > docs/tasks.md"""

from periscope.evaluation.tasks.benchmarks import page

if __name__ == "__main__":
    print(page(), end="")
