import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
from adaprune.teach import sketches, slider
pictures = {}
for t in (1, 10, 100, 300, 1000, 3000, 10_000, 100_000):
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 3), layout="constrained")
    sketches.draw_start(axes[0], t, 0.01)
    sketches.draw_start(axes[1], t, 0.01, slope=True)
    pictures[f"t = {t:,}"] = fig
h=slider(pictures).data
script="<script>const r=document.querySelectorAll('input');r[1].value=3;r[1].dispatchEvent(new Event('input'));r[2].value=7;r[2].dispatchEvent(new Event('input'));</script>"
open("/tmp/te_out/html/sl.html","w").write("<meta charset=utf8>"+h*3+script); print(len(h))
