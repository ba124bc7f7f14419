#!/bin/bash
# Evaluates one point: reads input.json, leaves output.json, metrics.tgz and metadata.json.
exec python3 train_digits.py
