"""``tfspark doctor``: checks a set-up and says how to fix each failed check.

`machine` checks the driver's machine. `survey` gathers facts of the executors with `probe`, and `verdicts` turns them
into findings. `command` shows the findings.
"""
