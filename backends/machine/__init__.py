"""What runs on the machine of a workspace: standard library only.

A machine where aiopt is not installed gets these files sent, so they import nothing but the
standard library of Python 3.9 or newer, and each other, relatively.
"""
