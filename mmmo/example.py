"""The file that `mmmo init` writes."""

EXAMPLE = """\
# A merge campaign. Check it: `mmmo check campaign.yaml`. Run it: `mmmo launch campaign.yaml`.
schema_version: 1
name: my-merge                 # the campaign's name in every other command
seed: 7                        # the campaign is a function of this file and its seed

sources:                       # folders beside this file, or hub ids (org/name, org/name@revision)
                               # with a LoRA adapter: model+adapter; as an expert, adapter alone
  base: models/base            # the model that the experts were fine-tuned from
  experts:
    maths: models/maths
    code:  models/code

merge:
  method: ties                 # linear, task_arithmetic, ties, dare_linear, dare_ties, slerp;
                               # or {choice: [task_arithmetic, ties]}: the method is searched too
  weight:  {range: [0.0, 1.5]} # per expert; a range is searched, a number is fixed,
                               # {maths: 1.0, code: {range: [0, 1]}} says it for each expert
  density: {range: [0.1, 1.0]} # share of each task vector that is kept
  layer_groups: 1              # cut the layers into groups with parameters of their own
  filters: []                  # e.g. [self_attn, mlp]: tensor groups with parameters of their own
  dtype: bfloat16              # of the merged weights: float32, bfloat16 or float16

benchmarks:                    # each has a search split and a held-out split that search never sees
  sums:
    kind: exact_match          # exact_match, perplexity, nll, multiple_choice, classification
    data: data/sums.jsonl      # JSONL, CSV, TSV or Parquet; or a data set of the hub
    limit: 400                 # items that a trial is scored on, drawn by seed
    options: {prompt: question, answer: answer, max_new_tokens: 8}
  python:
    kind: nll
    data: data/python.jsonl
    limit: 200
    options: {text: text}

objectives:                    # the goal (larger or smaller is better) follows the metric
  maths: {benchmark: sums}
  code:  {benchmark: python}
  # sparsity: {measure: delta_l1}   # mean |change| per parameter, known from the recipe
  # `reference: 0.1` sets the worst value that still counts in the hypervolume

# constraints: ["maths >= 0.2"]

search: {strategy: mm_mo}                          # mm_mo, qlognehvi, sobol
budget: {trials: 30}                               # and/or items, hours, stop_when_gain_below
pool:   {executor: process, workers: 2, trial_timeout_s: 600, retries: 1}
  # device: cuda scores models on a GPU; merge_on: device merges them there, too
# store: sqlite:///runs/mmmo.db                    # or postgresql+psycopg://user@host/database
"""
