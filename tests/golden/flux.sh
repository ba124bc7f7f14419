#!/bin/bash
# flux: --job-name=habcde-aaaaaa
# flux: --nodes=3
# flux: --nslots=3
# flux: --exclusive
# flux: --time-limit=90m
# flux: --cores-per-slot=32
# flux: --gpus-per-slot=4
# flux: --queue=pbatch
# flux: --setattr=system.bank=phy123
# flux: --requires=-host:n1,n2
# flux: --conf=resource.noverify=true

umask 077
export FLUX_JOB_ID="$(flux getattr jobid)"
module load python/3.11
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
