"""`crossent bench`: time and memory of the losses beside those of other libraries, on the machine at hand.

Each rival has a process of its own for each case. There crossent and the rival are timed in turn, so that the machine's
moods fall on both alike, and a ratio is the median over the rounds of rival / crossent.
"""
