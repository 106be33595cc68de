#!/usr/bin/env python3
"""compare.py RINGBENCH_JSON KOSOKU_DIR...: verdicts that differ, case by case."""
import json, sys
from pathlib import Path
ours={c["case"]:(c["behavior"],c["behavior_close"],c["closing"]["remoteCloseCode"],c["result"]+" | "+c["result_close"]) for c in json.load(open(sys.argv[1]))["cases"]}
theirs={}
for d in sys.argv[2:]:
    for agent,cases in json.load(open(Path(d)/"index.json")).items():
        for case,e in cases.items():
            detail=json.load(open(Path(d)/e["reportfile"]))
            theirs[case]=(e["behavior"],e["behaviorClose"],e["remoteCloseCode"],detail["result"]+" | "+detail["resultClose"])
key=lambda n:[int(p) for p in n.split(".")]
same=diff=0
for case in sorted(set(ours)|set(theirs),key=key):
    a,b=ours.get(case),theirs.get(case)
    if a is None or b is None:
        continue
    if a[:3]==b[:3]: same+=1
    else:
        diff+=1
        print(f"{case}: ours {a[:3]} ({a[3]})\n      kosoku {b[:3]} ({b[3]})")
print(same,"same,",diff,"differ")
