"""The words of ``docs/recipes.md`` in both languages; the numbers are put in by :mod:`benchmarks.recipe_tables`."""

from __future__ import annotations

HEAD = {
    "en": """# Which recipe wins

[中文](recipes.zh-CN.md)

Made by `python -m benchmarks.recipes` and written here by `--docs docs`, from the JSON files in `benchmarks/results`.
First what follows from the results, then the results, then how they were made.
""",
    "zh": """# 哪种配方更好

[English](recipes.md)

由 `python -m benchmarks.recipes` 测得，用 `--docs docs` 由 `benchmarks/results` 中的 JSON 文件写到这里。
先是由结果得出的建议，然后是结果，最后是怎样测得的。
""",
}
HOW = {
    "en": """## How the tables were made

The command below a table makes one of its rows again, for one of its seeds, and prints it beside what is published
(`--data` is a folder with `lm/<corpus>/{train,valid,test}.txt`; the corpus `stdlib`, this Python's standard library,
needs none). Without `--anew` what is published counts as done, and only what is missing is made.

- **Equal budgets.** All recipes of a table may spend the same FLOPs, counted from the plan: branches, teachers, the
  search for α, healing, and every node left behind on the way. Where a single model on little text is better off with
  fewer passes it spends less: the FLOPs column says what was spent. Not counted: measuring the valid loss in training.
  What teachers say on a small text is computed, and counted, once for each of its windows.
- **compute**: the single model of the final size reads less than half of the text once, recipes that begin small read
  more of it. **data**: a small subset that the budget lets the single model read about twenty times, past the point
  where it overfits (it may choose to spend less).
- **test** is the loss in nats a token on the whole test text, read once, when a run is over: mean ± standard deviation
  over the seeds. Every choice (α, best weights of a run, tuned values, the size of the best single model) is made on
  valid.
- **against** a control: the relative difference of the test losses over the same seeds; negative is better. In brackets
  the 95% interval of a paired bootstrap over 2,000 resamples of the test windows: how sure the difference is on other
  text of the kind. Other seeds are another matter: see the spread.
- **Both sides are tuned** over the same grid, with a seed that no reported run has, where the tuning table below lists
  the corpus or its class; the others take the values found on wikipedia, sizes included, so that there the "best
  single" model is the one that was best on wikipedia. Controls that are trees (one block, hops, merge, on
  little text the ensemble) take the values of our side.
- **Machines**: 18 runs made on a GPU and again on a CPU differ by 0.06 ± 0.25% (mean and standard deviation). There is
  no bias, but what rounding alone changes is about what another seed does.
- **`--quick`** runs two seeds on `stdlib`, this Python's standard library. It shows the way and
  proves nothing: nothing is tuned on it, and its values were set by hand after pilots with seed 0.
- **one worker, four workers**: the sum of the processor seconds of all nodes, and the critical path of the same
  measured node times on four processors (list scheduling). The four are computed, not run. Only runs on a CPU are
  timed: many at a time share a GPU. Equal runs have differed by up to 60% in their seconds; the single model and the
  ensemble of wikipedia/compute were timed side by side, other rows on several days. All were timed before training
  kept the memory that a step frees (decision 0009): a run made now is faster, the smallest models most.
- **budget × 10**, where it stands: models of ten times the parameters (wider by √10) on the same texts and tokens, with
  ten times the FLOPs; sizes keep their names of scale 1. Values come from a search at that scale where the tuning table
  lists one, else from scale 1.
""",
    "zh": """## 表格是怎样做成的

表下的命令把其中一行用其一个种子重新做一遍，并与已发布的结果并排打印（`--data` 是含有 `lm/<语料>/{train,valid,test}.txt`
的文件夹；语料 `stdlib` 即本机 Python 的标准库，不需要它）。不带 `--anew` 时，已发布的就算做完，只做缺的。

- **预算相同。** 同一张表里的所有配方可以花费相同的 FLOPs，由计划算出：分支、教师、α 的搜索、修复，
  以及途中留下的每个节点都计入。文本很少时，单个模型若少读几遍更好，就少花一些：FLOPs 一列是实际花费。
  不计入：训练中测量验证损失的开销。小文本上教师的输出对每个窗口只计算一次，也只计入一次。
- **compute**：最终大小的单个模型读不到半遍文本，从小模型开始的配方读得更多。
  **data**：一个小子集，预算够单个模型读约二十遍，已过了它过拟合的点（它可以选择少花一些）。
- **测试损失**：整个测试文本上每个词元的损失（奈特），每次运行结束后只读一次：各种子的平均值 ± 标准差。
  一切选择（α、一次运行中最好的权重、调好的数值、最好单个模型的大小）都在验证集上做。
- **相对**某个对照：相同种子上测试损失的相对差；负数更好。括号内是对测试窗口重采样 2,000 次的配对自助法 95% 区间：
  它说明在同类的其他文本上这个差有多可靠。换种子是另一回事：见标准差。
- **双方都调过**，网格相同，所用种子不出现在报告的运行中，只要下面的调参表列出了该语料或其类别；
  其余语料用 wikipedia 上找到的数值，包括大小，所以那里“最好的单个模型”是在 wikipedia 上最好的那个。
  本身是树的对照（单块、多步、合并，文本很少时还有集成）用我们一方的数值。
- **机器**：18 次运行先在 GPU 上、再在 CPU 上做，相差 0.06 ± 0.25%（平均值和标准差）。没有偏向，
  但仅仅舍入造成的变化就和换一个种子差不多。
- **`--quick`** 在 `stdlib`（本机 Python 的标准库）上跑两个种子。它只是演示，不是证据：在它上面什么都没有调，
  数值是用种子 0 做过试验后手工定的。
- **一个处理器、四个处理器**：所有节点的处理器秒数之和，以及同样的节点时间在四个处理器上的关键路径（列表调度）。
  四个处理器的时间是算出来的，不是实际运行的。只有 CPU 上的运行才计时：GPU 由许多运行同时共用。
  同样的运行，秒数曾相差达 60%；wikipedia/compute 的 single 与 ensemble 是并排计时的，其他行在不同的日子测得。
  计时都早于“训练保留每步释放的内存”（决策 0009）：现在做会更快，最小的模型快得最多。
- **预算 × 10**（如有）：参数为十倍（宽度为 √10 倍）的模型，文本和词元数相同，FLOPs 为十倍；大小仍用规模 1 的名字。
  数值来自该规模上的搜索（若调参表中列出），否则用规模 1 的。
""",
}
WHEN = {
    "en": """## Which when

What the tables below say; the seeds stand in every row, and with one seed a difference under 1% says nothing.

- **Choose the size first.** With 5 to 10 TFLOP the best size beats the 8 blocks of width 128 by 8 to 12%, and by 5 to
  10% the best way found to build the latter. `ract init` therefore makes no model that gets fewer than 4 tokens for
  each parameter.
- **Compute is scarce and the size is given, too large for the budget: stack once.** A quarter of the depth trained
  first, stacked and healed is 2.7 to 4.8% better than the single model of that size on all six corpora; with ten times
  the size and the budget 5 to 7%. With half of the budget the lead is 5 to 6%, with twice of it 2 to 3%. Two hops do
  nearly as well, three or a single block worse; a merge of branches loses to the single model.
- **Compute is scarce and the size is free: train one model.** Growing it ties on the four English corpora and loses
  0.7% (zh_wikipedia) and 1.5% (tinyshakespeare), where the best size is the smallest of those offered. Ten times
  larger, where it is not, growing gains 0.5% (wikipedia) or ties (zh_wikipedia).
- **Text is scarce and compute is not: regularise, and go fast.** A weight decay of 2, an average of the weights (EMA)
  and, for a model that learns alone, dropout 0.1 allow a learning rate of 4e-2, ten times the usual one: 3% better for
  one leaf than the best that a search of lower rates had found. A model of 18 M parameters does not bear that rate.
- **Then, perhaps, three small leaves, distilled into one.** The student is 0.6% (stories) to 2.6% (code) better
  than the best single model of any size, which is one leaf with the whole budget: it has the student's size, so what is
  gained costs nothing in use. The ensemble left as it is gains another 1.4% on tinyshakespeare, elsewhere little. All
  this takes compute: with half of this budget (36 passes of such a model over the text) one leaf is better by 2 to 4%.
  Distilling twice, merging, growing and upcycling lose there.
- **Several workers that cannot share a batch** (boards, machines): the leaves of an ensemble train side by side. Where
  compute is scarce, four workers with a leaf of 2 blocks of width 64 each reach the loss of the single model of the
  given size in 30% (wikipedia) and 36% (zh_wikipedia) of its time on one, with 50 and 70% of its parameters; at equal
  FLOPs the loss is 5 and 6% lower. Growth and merges gain little time. On one machine a single model of the best size
  is the better choice: on one core it takes 64% of that time (wikipedia), and cores that share its batches take less.
""",
    "zh": """## 何时用哪种

这是下面的表格所说的；每一行都写着种子，只有一个种子时小于 1% 的差什么也说明不了。

- **先选大小。** 用 5 到 10 TFLOP，最好的大小比宽 128 的 8 块好 8% 到 12%，比造出后者的最好办法好 5% 到 10%。
  所以 `ract init` 不会造每个参数分不到 4 个词元的模型。
- **算力稀缺，大小已定且对预算来说太大：堆叠一次。** 先训练四分之一的深度，堆叠后修复，
  在全部六个语料上比同样大小的单个模型好 2.7% 到 4.8%；大小和预算都为十倍时好 5% 到 7%。
  预算减半时领先 5% 到 6%，加倍时 2% 到 3%。分两步几乎一样好，三步或从单个块开始更差；分支合并不如单个模型。
- **算力稀缺，大小可选：训练一个模型。** 增长在四个英文语料上与之持平，在 zh_wikipedia 上差 0.7%，
  在 tinyshakespeare 上差 1.5%：那里最好的大小就是可选的最小的。大十倍时并非如此，
  增长好 0.5%（wikipedia）或持平（zh_wikipedia）。
- **文本稀缺而算力不缺：加强正则化，提高学习率。** 权重衰减 2、权重平均（EMA），单独学习的模型再加 dropout 0.1，
  就能用 4e-2 的学习率，是通常的十倍：单个叶子比在较低学习率中搜索到的最好结果好 3%。
  1800 万参数的模型承受不了这个学习率。
- **然后也许用三个小叶子蒸馏成一个。** 与任意大小中最好的单个模型（即用全部预算的单个叶子）相比，
  学生好 0.6%（stories）到 2.6%（code）；它与叶子一样大，所以使用时没有额外代价。
  集成本身在 tinyshakespeare 上还要再好 1.4%，在其他语料上差不多。
  这需要算力：预算减半时（这样的模型读文本 36 遍）单个叶子好 2% 到 4%。
  在这里蒸馏两次、合并、增长、升级为专家都更差。
- **多个不能共享批次的处理器**（多块板子、多台机器）：集成的叶子可以同时训练。算力稀缺时，四个处理器各训练一个
  2 块、宽 64 的叶子，达到给定大小的单个模型的损失只用它在一个处理器上时间的 30%（wikipedia）和 36%（zh_wikipedia），
  参数为其 50% 和 70%；FLOPs 相同时损失低 5% 和 6%。增长和合并省不了多少时间。
  在一台机器上，最佳大小的单个模型更合适：一个核心只用 64% 的时间（wikipedia），多个核心共享其批次则更少。
""",
}
WORDS: dict[str, dict[str, str]] = {
    "short": {"en": "In short", "zh": "简而言之"},
    "short_text": {
        "en": "For each corpus, the recipe of ours that is best on **valid**, and the best of the given final size, "
        "against two controls on test: a single model of its own final size, and the best single model of any size, "
        "each with the same budget.",
        "zh": "对每个语料，取**验证集**上我们最好的配方，以及给定最终大小中最好的，"
        "在测试集上与两个对照比较：与其最终大小相同的单个模型，"
        "以及任意大小中最好的单个模型，预算都相同。",
    },
    "compute": {"en": "Compute-limited", "zh": "算力受限"},
    "data": {"en": "Data-limited", "zh": "数据受限"},
    "scale": {"en": "budget × {scale:g}", "zh": "预算 × {scale:g}"},
    "cell": {
        "en": "**{name}**: {budget} FLOPs a run, {tokens} training tokens; made on: {devices}.",
        "zh": "**{name}**：每次运行 {budget} FLOPs，训练文本 {tokens} 个词元；机器：{devices}。",
    },
    "ours": {"en": "ours", "zh": "我们的"},
    "control": {"en": "control {number}", "zh": "对照 {number}"},
    "depth": {"en": "Depth of recursion", "zh": "递归的深度"},
    "depth_text": {
        "en": "What each further level adds at the same total FLOPs; test loss relative to the first row of its group.",
        "zh": "总 FLOPs 相同时每多一层带来什么；测试损失相对于本组第一行。",
    },
    "kept": {"en": "What a student keeps of its ensemble", "zh": "学生保留了集成的多少"},
    "kept_text": {
        "en": "A student has the size of one leaf. The gain is the ensemble's over one of its leaves, or over one leaf "
        "trained alone at its best (child alone).",
        "zh": "学生与单个叶子一样大。增益是集成相对于其一个叶子的，或相对于单独训练到最好的单个叶子（child alone）的。",
    },
    "same": {"en": "The same loss for less", "zh": "用更少得到同样的损失"},
    "same_text": {
        "en": "The share of the single model's FLOPs, and with N workers of its time on one, for the same test loss. "
        "Read off separate runs of the single model, each decayed to the end (straight lines between them in "
        "logarithms, the outer ones prolonged at most fourfold).",
        "zh": "达到同样测试损失所需的 FLOPs 占单个模型的比例，以及 N 个处理器的时间占它在一个处理器上时间的比例。"
        "由单个模型的几次独立运行读出，每次都衰减到底（对数坐标下连直线，两端最多外推四倍）。",
    },
    "figures_text": {
        "en": "Orange: ours; grey and blue: controls. In the first figures left of zero is better, the bars are 95% "
        "intervals over the test windows; in the curves the line is the single model with other budgets, and what lies "
        "below it has the same loss for less.",
        "zh": "橙色：我们的；灰色和蓝色：对照。前几幅图中零的左边更好，横线是测试窗口上的 95% 区间；"
        "曲线图中的线是单个模型在不同预算下的结果，线下方的点以更少的代价达到同样的损失。",
    },
    "scaling": {"en": "Scaling on paper", "zh": "纸上的规模推算"},
    "scaling_text": {
        "en": "Curves through all runs of all corpora; the 95% interval is of the factor, from 2,000 resamples of the "
        "points. For parameters and tokens the saving is the share by which the test loss of `stack` is below that of "
        "`single` at the same size and FLOPs: against the parameters, where the single model reads the same tokens "
        "(`--scale`); against its tokens a parameter, where its size is the same (`@`). For workers, up to as many as "
        "there are leaves, it is the share of one worker's time, and the factor the share of the work that can be "
        "shared (Amdahl's law). A fit to small models is no promise for large ones.",
        "zh": "过所有语料所有运行的曲线；95% 区间是系数的，来自对各点重采样 2,000 次。"
        "对参数和词元，节省是大小和 FLOPs 相同时 `stack` 的测试损失比 `single` 低的比例："
        "参数变化时，单个模型读的词元相同（`--scale`）；每个参数的词元数变化时，大小相同（`@`）。"
        "对处理器（不多于叶子数），是相对一个处理器节省的时间比例，系数是可以分担的工作的比例（阿姆达尔定律）。"
        "对小模型的拟合不是对大模型的承诺。",
    },
    "scaling, parameters": {"en": "parameters", "zh": "参数"},
    "scaling, tokens a parameter": {"en": "tokens a parameter", "zh": "每个参数的词元数"},
    "scaling, workers, ensemble": {"en": "workers, compute, ensemble", "zh": "处理器，compute，ensemble"},
    "scaling, workers, ensemble-distil": {
        "en": "workers, data, ensemble-distil",
        "zh": "处理器，data，ensemble-distil",
    },
    "check_text": {
        "en": "What a check on a cluster takes: `single` and `stack` with three seeds each, four tokens for each "
        "parameter (the fewest that `ract init` allows), 6 FLOPs a token and parameter, on GPUs that do 4e14 FLOPs a "
        "second; the runs are independent, so that six GPUs take a sixth of the time.",
        "zh": "在集群上验证需要什么：`single` 和 `stack` 各三个种子，每个参数四个词元（`ract init` 允许的最少），"
        "每个词元每个参数 6 FLOPs，GPU 每秒 4e14 FLOPs；各次运行互不依赖，六块 GPU 只需六分之一的时间。",
    },
    "tuning": {"en": "Tuning", "zh": "调参"},
    "tuning_text": {
        "en": "Made by `--tune SEARCH --tune-only`, second laps by `--again`. "
        "Coordinate search on valid, seed 100; both sides have the same values to choose from. Besides, a stack "
        "chooses its moment (grow_at), an ensemble its leaves, their number and their part of the budget (split), a "
        "single model its passes (share). Where `stack` has no search of its own it takes the values of "
        "`best-stack`. The searches of wikipedia/data made two laps, the second from the higher rate and weight decay "
        "that pilots had led to; the trials of wikipedia/data/ours before those of split asked the teachers at every "
        "step. Of one leaf alone the search, with its one seed, chose a quarter of the budget (4.722; half 4.726). "
        "With seed 0 the whole was better on valid, on wikipedia, stories and medical, so the rows spend the whole.",
        "zh": "由 `--tune 搜索名 --tune-only` 做成，第二轮再加 `--again`。"
        "在验证集上逐坐标搜索，种子 100；双方可选的数值相同。此外，堆叠选择其时机（grow_at），"
        "集成选择叶子、其数目及其占预算的比例（split），单个模型选择读几遍（share）。"
        "`stack` 没有自己的搜索时用 `best-stack` 的数值。wikipedia/data 的搜索走了两轮，"
        "第二轮从试验得到的更高的学习率和权重衰减开始；"
        "wikipedia/data/ours 中 split 之前的试验每一步都询问教师。"
        "单个叶子的搜索（只有一个种子）选了四分之一的预算（4.722；一半 4.726）；"
        "用种子 0，在 wikipedia、stories 和 medical 的验证集上全部预算更好，所以表中各行用全部预算。",
    },
    "nanogpt": {"en": "tiny-shakespeare, side by side with nanoGPT", "zh": "tiny-shakespeare：与 nanoGPT 并排"},
    "nanogpt_text": {
        "en": "Made by `python -m benchmarks.recipes --data DATA --nanogpt CHECKOUT --longer`: "
        "nanoGPT's own CPU recipe (its README) and ours on the same machine for the same time. nanoGPT reports "
        "the mean of random blocks of the last tenth of the text; ours is the whole last tenth, in windows as long as "
        "those of its training: 128 characters, 256 in the last row. The target is 1.50 in the same time, and in "
        "an hour nanoGPT's figure for a GPU, 1.47.",
        "zh": "由 `python -m benchmarks.recipes --data DATA --nanogpt CHECKOUT --longer` 测得："
        "nanoGPT 自己的 CPU 配方（见其 README）与我们的，同一台机器、同样的时间。"
        "nanoGPT 报告的是文本最后十分之一中随机块的平均；我们的是整个最后十分之一，"
        "窗口与训练时一样长：128 个字符，最后一行为 256 个字符。"
        "目标：同样的时间内 1.50；一小时内达到 nanoGPT 的 GPU 数字 1.47。",
    },
    "untimed": {
        "en": "Last row: {count} of the seeds were trained on a GPU with the same budget. They count for the loss, "
        "not for the wall clock.",
        "zh": "最后一行有 {count} 个种子在 GPU 上以同样的计算量训练，只计入损失，不计入用时。",
    },
    "again": {"en": "Any row again:", "zh": "重做任意一行："},
    "met": {"en": "met", "zh": "达到"},
    "missed": {"en": "missed", "zh": "未达到"},
    "unsure": {"en": "the interval holds the target", "zh": "区间包含目标"},
}
# The heads of columns; what is missing is the same in both languages.
HEADINGS_CHINESE = {
    "cell": "语料/设定",
    "ours": "我们的",
    "control 1": "对照 1",
    "control 2": "对照 2",
    "against it": "与之相比",
    "target": "目标",
    "recipe": "配方",
    "what": "说明",
    "parameters": "参数",
    "test": "测试损失",
    "bits a byte": "比特/字节",
    "seeds": "种子",
    "against single": "相对 single",
    "against best-single": "相对 best-single",
    "against child-alone": "相对 child-alone",
    "one worker": "一个处理器",
    "four workers": "四个处理器",
    "relative": "相对",
    "leaf": "叶子",
    "ensemble": "集成",
    "student": "学生",
    "kept over leaf": "保留（相对叶子）",
    "kept over child alone": "保留（相对 child alone）",
    "time, 1 worker": "时间，1 个处理器",
    "search": "搜索",
    "grid": "网格",
    "trials": "试验次数",
    "chosen": "选中",
    "x": "自变量",
    "from–to": "范围",
    "points": "点数",
    "saving": "节省",
    "95% of the factor": "系数的 95% 区间",
    "tokens a run": "每次运行的词元",
    "FLOPs of six runs": "六次运行的 FLOPs",
    "GPU hours": "GPU 小时",
    "nats a character": "奈特/字符",
    "wall clock": "用时",
}
# The rows beside nanoGPT, by the names that their results have.
NANOGPT_CHINESE = {
    "nanoGPT, its CPU recipe": "nanoGPT，其 CPU 配方",
    "one model": "一个模型",
    "one model, smaller": "一个更小的模型",
    "two blocks, stacked twice, healed": "两块，堆叠两次，修复",
    "models, averaged": "个模型，输出平均",
    "smaller models, averaged": "个更小的模型，输出平均",
    "larger models, averaged, for longer": "个更大的模型，输出平均，时间更长",
}
