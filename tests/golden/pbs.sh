#!/bin/bash
#PBS -N habcde-aaaaaa
#PBS -S /bin/bash
#PBS -l select=3:ncpus=32:ngpus=4:mem=480000mb
#PBS -l place=scatter:excl
#PBS -l walltime=01:30:00
#PBS -q prod
#PBS -A phy123
#PBS -j oe
#PBS -k doe
#PBS -W umask=077
#PBS -r n
#PBS -l filesystems=home:eagle

umask 077
cd /scratch/spool/allocations/habcde-aaaaaa || exit 1
module load python/3.11
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
