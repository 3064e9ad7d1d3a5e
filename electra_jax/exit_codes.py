"""How every program of ours ends. cli.py gives each error its code; supervise.py and schedulers act on it.

0: done. absl and Python give it by themselves.
"""

DEFECT = 1  # a defect of ours, with its trace
USER = 2  # a person must mend something: one line says what and how, and nothing is lost
AGAIN = 42  # run the same command again: interrupted, stopped and saved, a peer lost, or a hang that the watchdog ended
