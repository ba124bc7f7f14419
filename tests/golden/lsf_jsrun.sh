#!/bin/bash
#BSUB -J habcde-aaaaaa
#BSUB -nnodes 3
#BSUB -W 1:30
#BSUB -q batch
#BSUB -P phy123
#BSUB -rn
#BSUB -alloc_flags "gpumps smt4 nvme"

umask 077
module load python/3.11
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
