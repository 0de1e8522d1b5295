"""Time, memory and start-up of crossent beside its rivals: `python -m benchmarks`.

Every case runs in a process of its own, twice: as installed, and with THP_MEM_ALLOC_ENABLE=1, which makes PyTorch ask
for huge pages. There, crossent and its rivals are timed in turn, so that the machine's moods fall on all of them alike,
and a ratio is the median over the rounds of rival / crossent. A ratio that falls short of its target is marked; it does
not fail the run.
"""
