"""Benchmarks: each compares things in one run, interleaved, and reports ratios. Not installed.

python -m bench                     `Score` beside what people use, and the limits: `make bench`
systems/                            a module each: how it is started, and one call of it
load.py, driver.py                  load generators, processes of their own, and their parent's end
parts/                              what is compared with what; each part can be run alone
"""
