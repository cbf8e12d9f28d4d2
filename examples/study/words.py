"""The text of docs/study.md; every figure in it is filled in from the tables."""

PAGE = """# The study: is layer-wise pruning worth it?

`python examples/study/page.py` makes this page from the tables in
[examples/study/results](../examples/study/results). `{command}` measured them: {candidates} models of the zoos {zoos}.
It takes hours, and goes on where it was stopped. `--zoos shipped --stages core gates --out DIR` is the main part alone.
All figures are accuracies in %, and differences are in points with 95 % intervals.

## In short

{short}

![Fronts on the shipped zoo](study_fronts.png)

Each line is a method at several scales. A large open marker is the scale that `best` chooses on validation samples
of the ID sets.

## What was asked

1. Is pruning whole layers worth it, against a scale that is tuned as well?
2. Does it help to learn how much of each layer a merge takes?
3. Which scale does one take, who has no OOD labels?

At a fixed scale pruning gains much. A smaller scale gains most of that too. So every method here has its own front:
it is measured at many scales, and fronts are compared with fronts.

## How it was measured

- **Zoos.** `shipped` is the package's. `seed1` and `seed2` are trained anew with other seeds. `vit` has another
  network. In `styles` all tasks have one alphabet, each task is a style, and OOD are styles that no task has.
  `examples/study/zoos.py` builds those that do not ship.
- **Sets.** Each zoo has five ID sets. Far OOD sets show unseen classes in unseen styles. Near OOD sets show unseen
  classes in the styles of the tasks. There are {images} test images a set, and {validation} validation images of
  each ID set. "OOD" is the mean over all OOD sets.
- **Grid.** It is the same for all methods: half octaves of the published scale from a quarter of it to twice it,
  further where the best validation figure stands at an end, then quarter octaves around that best one. LayerGates'
  and AdaMerging's coefficients have seven scales, from 0.42 to 1.19 of what was learnt.
- **Choices.** `best` takes the scale with the best ID average on the validation samples. `one_standard_error` takes
  the smallest change of the base that is as good within one paired standard error. No OOD sample chooses anything.
- **Learning.** LayerGates and AdaMerging see {unlabelled} unlabelled images of each task. There are {draws} draws
  of them. They are in no other set.
- **Figures.** *Best mean* is the highest mean of ID and OOD average on a front. *ID at equal OOD* is the ID average
  where the OOD average is that of the other method's chosen point, and *OOD at equal ID* the reverse. *Hypervolume*
  is the area under the front, in hundredths of the square of all accuracies. The base is on every front, as scale
  0.
- **Intervals.** A paired bootstrap of {bootstraps} draws takes samples anew, the same for both methods, and chooses
  the best points anew. It also draws unlabelled images, random masks and, over "{pooled}", zoos. "Not reached"
  means that a front has no such point. Three zoos are few: read the single zoos too.

## What a method gains over task arithmetic

Best mean of ID and OOD average, minus that of task arithmetic's own front:

{gains}

![Gains over task arithmetic's own front](study_gains.png)

All figures of the fronts:

{details}

## What pruning gains over the same rule

Best mean, minus that of the same rule's own front without pruning:

{pruning}

At the published scale it looks otherwise. Below is what pruning half of the layers changes there, and what the scale
that `one_standard_error` chooses changes without pruning:

{published}

## Tuned against tuned

What a user gets who chooses the scale on validation samples. Learnt and random ones are means over their draws.

{tuned}

{others}
## Choosing without OOD labels

What `one_standard_error` changes against `best`, on test samples. Where both take the same there is no line.

{choosing}

{choosing_words}

## Controls

Random masks, {masks} of them, prune as many layers as `mean_abs` 0.5 does. They are measured at three scales, and
compared with `mean_abs` at the same three. A reversed score prunes the layers that `mean_abs` keeps.

{controls}

## Every rule

The shipped zoo. "Tuned" is the scale that `best` chooses. The last columns compare best means of fronts.

{rules}

{rules_elsewhere}
## What failed, or did not hold everywhere

{failed}

Earlier measurements, which this study does not repeat:

- 16 unlabelled images a task are too few to identify a mask. Rankings from two draws correlate by 0.2 to 0.3.
- Taylor scores from one pass collapse on some draws of images.
- Features as the target, Gauss-Newton steps and a ratio of 0.7 brought nothing.
- Gates for each tensor, gates for 2 or 4 singular subspaces, parts and rows together, 200 steps, and an anchor of 2
  all came within 0.4 points of the default.

## When pruning is not worth it

On `styles` merging raises the unseen average above the base's, and pruning towards the base takes some of that back.
By the best mean of the pruned front, against the rule's own unpruned front:

{not_worth}

## What to use

1. With unlabelled images of each task, 64 are enough: `LayerGates` on TSV-M's parts. Take the coefficients as they
   were learnt, or choose a part of them by `one_standard_error` on labelled ID samples.
2. Without images to learn on, but with labelled ID samples: tune the scale, and choose it by `one_standard_error`. A
   mask of `mean_abs` on top gains on some zoos and loses on others: measure it, or leave it.
3. With neither: `mean_abs` 0.5 before task arithmetic at its published scale takes back much of what too large a
   scale costs.
4. Measure near and far OOD sets apart. What helps one may cost the other.

## What was measured, and what was not

Fronts that are complete, of those that are planned. The order of worth is in `run.py`; a later run goes on.

{measured}

Left out on purpose:

{left_out}
"""
