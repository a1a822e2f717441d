"""``tfspark doctor``: checks a setup and says how to fix each failed check.

`machine` checks the driver's machine. `survey` collects facts about the executors with `probe`, and `verdicts` turns
the facts into findings. `command` shows the findings.
"""
