#!/bin/bash
#BSUB -J habcde-aaaaaa
#BSUB -n 96
#BSUB -R "span[ptile=32]"
#BSUB -gpu "num=4/host:mode=shared:j_exclusive=yes"
#BSUB -R "rusage[mem=480000MB/host]"
#BSUB -R "select[hname!='n1' && hname!='n2']"
#BSUB -W 1:30
#BSUB -q gpu
#BSUB -P phy123
#BSUB -rn

umask 077
module load python/3.11
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
