"""``tfspark doctor``: what of a set-up works, what does not, and what to do about it.

`machine` looks at the driver's machine and `survey` at the executors, by way of `probe`; both only gather facts.
`verdicts` and the functions beside it judge them, `command` shows the findings.
"""
