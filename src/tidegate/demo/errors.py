"""What can end the demo before its time."""

from tidegate.base.errors import Fault


class StepFailed(Fault):
    code = "demo.step.failed"
    advice = (
        "Read the step's evidence above; `tidegate doctor` says what this machine lacks. --keep leaves all in place."
    )
