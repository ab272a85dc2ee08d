"""What belongs to a process: its signals, its output, what Waymark changes in it.

from waymark.processes.signals import GracefulShutdown

with GracefulShutdown() as stop:  # notes a signal while the work goes on in another thread
    stop.run(lambda: print(stop.signalled()))
"""
