"""Kill campaigns with SIGKILL at every kind of moment, resume them, and compare how they end.

`python -m tests.kill_suite` runs it. A worker process imports aiopt once and forks a controller for
each life of a campaign; the controller runs the real thing (`open_campaign`, the local backend, a
small target written for the purpose) and is killed from outside, or kills itself at a named moment.
The next life resumes, until the campaign is finished. Then everything that can be known is checked
(see `checks`).

The negative controls break one protection each, in the controller and not in aiopt: each of them
must be found out, or the checks have no power and the suite fails.
"""
