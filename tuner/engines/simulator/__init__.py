"""A SIMULATION of an SGLang server: its flags, endpoints, scheduler and failures, and modelled GPU time.

`python -m tuner.engines.simulator --model-path llama-3.2-1b-instruct --gpu h100` serves it over HTTP in real
time; `virtual.closed_loop` runs the same scheduler in virtual time. docs/simulator.md says what is modelled
and how well. The process imports nothing heavy, so that it is up in a fraction of a second.
"""
