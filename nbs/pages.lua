-- A figure is shown at the size that it was drawn for: its width in dots, its dots an inch, and 96 dots of the page an inch. Pictures that do not
-- say how many dots an inch they have are shown dot for dot. On narrow screens a figure keeps a part of its width (see theme.scss).
local function width_of(image)
  local file = io.open(image.src, "rb")
  if image.attributes.width or not file then
    return image.attributes.width
  end
  local bytes = file:read("a")
  file:close()
  local known, size = pcall(pandoc.image.size, bytes)
  return known and bytes:find("pHYs", 1, true) and string.format("%d", math.floor(size.width * 96 / size.dpi_horz + 0.5))
end

function Image(image)
  local width = width_of(image)
  if width then
    image.attributes.width = width
    if width:match("^%d+$") then
      image.attributes.style = "--own: " .. width .. "px"
      image.classes:insert("figure-of-size")
    end
    return image
  end
end

-- Whether a line is a row of a table: three columns, with two spaces or more between them.
local function is_row(line)
  return line:find("%S  +%S.*%S  +%S") ~= nil
end

-- Whether a text is a table, whose rows must not break: it has some, and either more than two of them or no line that is very long. (.ci/texts.py sees to
-- it that rows of a table have at most 112 characters.)
local function is_table(text)
  local rows, longest = 0, 0
  for line in text:gmatch("[^\n]+") do
    rows = rows + (is_row(line) and 1 or 0)
    longest = math.max(longest, utf8.len(line) or #line)
  end
  return rows > 2 or rows > 0 and longest <= 112
end

-- What nbdev writes of a symbol's arguments is laid out as Python is elsewhere: `def f(` and a line for each argument, `    x:torch.Tensor=None, # meaning`
-- become `x: Tensor = None,  # meaning`. Types are written without the modules that they come from.
local MODULES = { "diffnb", "__main__", "collections%.abc", "typing", "pathlib", "os", "torch", "torch%.nn", "fastai" }

local function short_type(text)
  for _, module in ipairs(MODULES) do
    text = text:gsub("%f[%w_]" .. module .. "%.(%u%w*)", "%1"):gsub("%f[%w_]" .. module .. "%.[%l%d_%.]+%.(%u%w*)", "%1")
  end
  return text
end

-- The code and the remark of a line. A number sign inside a text begins no remark, and has no space before it.
local function parted(line)
  local code, remark = line:match("^(.-) # (.*)$")
  return code or line, remark and "  # " .. remark or ""
end

-- Arguments with a space behind the colon of a type, and around the sign of a default value that has a type before it.
local function spaced(code, alone) -- alone: each has a line of its own
  local out, depth, quote, kind = {}, 0, nil, nil -- kind: what the argument has had: nil, a type, or a value
  for sign in code:gmatch(utf8.charpattern) do
    if quote then
      quote = sign ~= quote and quote or nil
    elseif sign:match("['\"]") then
      quote = sign
    elseif sign:match("[%[%({<]") then
      depth = depth + 1
    elseif sign:match("[%]%)}>]") then
      depth = depth - 1
    elseif depth == 0 and sign == "," then
      sign, kind = alone and ",\n   " or ",", nil
    elseif depth == 0 and sign == ":" and not kind then
      sign, kind = ": ", "type"
    elseif depth == 0 and sign == "=" and kind ~= "value" then
      sign, kind = kind and " = " or "=", "value"
    end
    table.insert(out, sign)
  end
  local shown = table.concat(out):gsub(": NoneType = None", "=None"):gsub("%s+$", "")
  return (shown:gsub(" = (%u%w*)(%b())", function(name, settings) -- an object by default, which its own class documents
    return #settings > 60 and " = " .. name .. "(...)" or nil
  end))
end

-- Arguments without remarks have a line each if several of them make a line of this length or more.
local MANY = 60

local function signature(text)
  local lines, alone = {}, false
  for line in text:gmatch("[^\n]+") do
    alone = alone or #line >= MANY and line:match("^    ") ~= nil and not line:find(" # ", 1, true)
  end
  for line in text:gmatch("[^\n]+") do
    local code, remark = parted(line)
    code = code:gsub("[%l_]+:NoneType=None,? ?", function(argument) -- fastai's callbacks take a function for each event, as documented there
      return argument:match("^after_") and "" or argument:match("^before_") and "" or nil
    end)
    local before, answer = code:match("^(.*%))%->(.*):$")
    if answer then
      code = before .. " -> " .. short_type(answer) .. ":"
    elseif #lines == 0 then
      code = code:gsub("^def (%u)", "class %1")
    elseif code ~= "):" then
      code = short_type(code)
      code = spaced(code, alone and remark == "")
    end
    if code:match("%S") then
      table.insert(lines, code .. remark)
    end
  end
  return table.concat(lines, "\n")
end

-- "Raises:" and "References:" of a docstring, each line of which is an item, are one paragraph to pandoc.
local SECTIONS = { ["Raises:"] = true, ["References:"] = true }

local function section(paragraph)
  local first = paragraph.content[1]
  if not (first and first.t == "Str" and SECTIONS[first.text]) then
    return nil
  end
  local items = {}
  for i = 2, #paragraph.content do
    local inline, following = paragraph.content[i], paragraph.content[i + 1]
    local names = following and following.t == "Str" and following.text:match("^[%u][%w_%.]*:$")
    if inline.t == "SoftBreak" and (#items == 0 or names or first.text == "References:") then
      table.insert(items, pandoc.Inlines({}))
    elseif #items > 0 then
      local name = #items[#items] == 0 and first.text == "Raises:" and inline.t == "Str" and inline.text:match("^([%u][%w_%.]*):$")
      items[#items]:insert(name and pandoc.Code(name) or inline.t == "SoftBreak" and pandoc.Space() or inline)
      if name then
        items[#items]:insert(pandoc.Str(":"))
      end
    end
  end
  if #items == 0 then
    return nil
  end
  local blocks = {}
  for _, item in ipairs(items) do
    table.insert(blocks, { pandoc.Plain(item) })
  end
  return { pandoc.Plain({ pandoc.Emph({ pandoc.Str(first.text:sub(1, -2)) }) }), pandoc.BulletList(blocks) }
end

-- The line of the module from which a cell is that documents a symbol; nil for other cells.
local function line_of(block)
  local line = nil
  if block.t == "Div" and block.classes:includes("cell") then
    block:walk({
      Link = function(link)
        line = line or pandoc.utils.stringify(link.content) == "source" and tonumber(link.target:match("%.py#L(%d+)$"))
      end,
    })
  end
  return line
end

local function documented(div)
  return div:walk({
    Para = section,
    Str = function(str) -- the two dashes of an option are no dash
      local text, options = str.text:gsub("^(%(?)–(%l)", "%1--%2")
      return options > 0 and pandoc.Span({ pandoc.Str(text) }, pandoc.Attr("", { "held" })) or nil
    end,
    CodeBlock = function(block)
      if block.text:match("^def [%w_%.]+%(") then
        block.classes:insert("signature")
        block.text = signature(block.text)
        return block
      end
    end,
  })
end

-- What a cell prints wraps at the end of the line, unless it is a table, which scrolls. A table and the sentences below it, with an empty line between
-- them, are two blocks.
local function printed(div)
  return div:walk({
    CodeBlock = function(block)
      local blocks = pandoc.Blocks({})
      for part in (block.text:gsub("\n[ \t]*\n+", "\0") .. "\0"):gmatch("(.-)%z") do
        local rows, last = is_table(part), blocks[#blocks]
        if last and rows ~= last.classes:includes("wrapped") then
          last.text = last.text .. "\n\n" .. part
        else
          blocks:insert(pandoc.CodeBlock(part, pandoc.Attr("", block.classes:clone(), block.attributes)))
          if not rows then
            blocks[#blocks].classes:insert("wrapped")
          end
        end
      end
      return blocks
    end,
  })
end

-- Exported code is shown open. A cell that asks for it, by `#| folded: "what it is"`, has it folded under these words: a long class that only puts widgets
-- together, which the text around it explains.
local function folded(div)
  local words = div.attributes.folded
  div.attributes.folded = nil
  return div:walk({
    CodeBlock = function(block)
      if block.attributes["code-fold"] then
        block.attributes["code-fold"] = "true"
        block.attributes["code-summary"] = "Exported source: " .. words
        return block
      end
    end,
  })
end

function Div(div)
  if line_of(div) then
    return documented(div)
  end
  if div.attributes.folded then
    return folded(div)
  end
  return div.classes:includes("cell-output") and printed(div) or nil
end

-- nbdev documents the symbols of a cell from the last to the first. They are put into the order of the module, which is that of the page.
function Blocks(blocks)
  local first = 1
  while first <= #blocks do
    local run, last = {}, first
    while last <= #blocks and line_of(blocks[last]) do
      table.insert(run, { line = line_of(blocks[last]), block = blocks[last] })
      last = last + 1
    end
    table.sort(run, function(a, b)
      return a.line < b.line
    end)
    for i, one in ipairs(run) do
      blocks[first + i - 1] = one.block
    end
    first = math.max(last, first + 1)
  end
  return blocks
end

-- Columns of a table that hold sentences are kept from becoming as narrow as a word where another column has long names (see theme.scss).
local SENTENCE = 30

function Table(of)
  local longest = {}
  local function each_cell(does)
    for _, body in ipairs(of.bodies) do
      for _, row in ipairs(body.body) do
        for column, cell in ipairs(row.cells) do
          does(column, cell)
        end
      end
    end
  end
  each_cell(function(column, cell)
    local text = pandoc.utils.stringify(cell.contents)
    local words = select(2, text:gsub("%S+", ""))
    longest[column] = math.max(longest[column] or 0, words > 2 and #text or 0)
  end)
  each_cell(function(column, cell)
    if longest[column] > SENTENCE then
      cell.classes:insert("sentence")
    end
  end)
  return of
end

-- The option of a command, such as --out, would break behind its dashes.
function Code(code)
  if code.text:match("^%-%-?%w[%w-]*$") then
    code.classes:insert("held")
    return code
  end
end

-- A class without a constructor of its own is documented with the arguments of Python's object, which it does not take: its name is shown alone.
function CodeBlock(block)
  local name = block.text:match("^def (%u%w*)%(\n%s+%*args, %*%*kwargs\n%):?$")
  if name then
    block.text = "class " .. name .. ":"
    return block
  end
end

-- A formula inside a line is held together with the signs of punctuation behind it, which a browser would let begin the next line. A long one does not
-- break, as words do: it may scroll by itself where the screen is narrow (see theme.scss).
local LONG = 40

function Inlines(inlines)
  local out = pandoc.Inlines({})
  local i = 1
  while i <= #inlines do
    local formula, behind = inlines[i], inlines[i + 1]
    if formula.t == "Math" and formula.mathtype == "InlineMath" then
      local long = #formula.text > LONG
      local signs = behind and behind.t == "Str" and behind.text:match("^[.,;:!?)]+")
      if long or signs then
        local held = pandoc.Inlines({ formula })
        if signs then
          held:insert(pandoc.Str(signs))
          behind.text = behind.text:sub(#signs + 1)
        end
        formula = pandoc.Span(held, pandoc.Attr("", { long and "long-formula" or "held" }))
      end
    end
    if formula.t ~= "Str" or formula.text ~= "" then
      out:insert(formula)
    end
    i = i + 1
  end
  return out
end

-- A formula carries its source with it, which no browser shows, but which the search of the site would show behind the formula. It is left out, unless a
-- formula cannot be written as MathML; pandoc then warns of it, as it does of itself.
local MATHML = pandoc.WriterOptions({ html_math_method = "mathml" })

local function without_source(formula)
  local written = pandoc.write(pandoc.Pandoc({ pandoc.Plain({ formula }) }), "html", MATHML)
  local bare, sources = written:gsub('<annotation encoding="application/x%-tex">.-</annotation>', "")
  return sources == 1 and pandoc.RawInline("html", bare) or nil
end

return { -- the formulas after the rest, which looks at their source
  { Image = Image, Div = Div, Table = Table, Code = Code, CodeBlock = CodeBlock, Inlines = Inlines, Blocks = Blocks },
  { Math = without_source },
}
