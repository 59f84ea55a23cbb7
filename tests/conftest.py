"""What tests start from, wherever they are started: signals mean what they usually mean.

A shell starts what it puts in the background with interrupts ignored, nohup with hang-ups ignored, and children inherit
that; tests send such signals to programs and look at what becomes of them.
"""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
