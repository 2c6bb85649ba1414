"""The rules of the auditor, one family a module.

Each rule looks at specs and rows, and reports what makes a number untrue or too good, with its evidence.
"""
