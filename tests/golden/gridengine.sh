#!/bin/bash
#$ -N habcde-aaaaaa
#$ -S /bin/bash
#$ -l h_rt=01:30:00
#$ -l gpu=4
#$ -l mem_free=15000M
#$ -l h=!(n1|n2)
#$ -q gpu.q
#$ -P phy123
#$ -w n
#$ -wd /
#$ -o /dev/null
#$ -j y
#$ -notify
#$ -r n
#$ -pe mpi-32 96
#$ -l exclusive=true

umask 077
trap '' USR1 USR2
cd /scratch/spool/allocations/habcde-aaaaaa || exit 1
exec >>batch.out 2>&1
export PATH="$PATH${SGE_BINARY_PATH:+:$SGE_BINARY_PATH}"
module load python/3.11
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
